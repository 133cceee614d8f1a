"""What is done with torch on the way from teachers to students?

Transfer sets and models; stage one, the cache of the teachers' logits; stage two, the classes that they
confuse; stage three, the training of students from the store, and their evaluation.
"""
