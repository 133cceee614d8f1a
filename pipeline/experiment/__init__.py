"""The experiment file: its tables, their checks, and the document that they make up."""
