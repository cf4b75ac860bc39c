"""The benchmarks: one module each, and in each a function `cases` that says what is asked of whom."""
