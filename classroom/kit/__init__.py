"""A course week in a box: the assignment as a student gets it, and its grading."""
