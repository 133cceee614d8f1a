"""Stage two: the covariance of a teacher's predictions, clustered into sets of confusable classes."""
