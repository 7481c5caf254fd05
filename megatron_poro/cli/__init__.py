"""`poro`: parse, build, call. Each command's code is imported only when it runs."""
