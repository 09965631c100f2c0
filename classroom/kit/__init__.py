"""A course week in a box: the assignment as a student gets it, and its grading.

`tasks` is what all others are drawn from: the tasks, their points, what is cut, the planted bugs.

- An assignment: `skeleton` cuts the tasks out of the reference, `dialect` gives each student other
  formulas, `export` writes the folder (`kit new`). What is in `student` goes along.
- Its grading: `graft` puts the functions of a task into the reference, `sandbox` starts the child
  that has them (`drive` and `prelude` run there), `examiner` asks it, `checks`, `arena` (task 12)
  and `others` (task 13) say what, `grading` goes through the tasks, `grade` writes the result.
- `check` grades the skeleton, the reference and the planted bugs (`kit check`).
"""
