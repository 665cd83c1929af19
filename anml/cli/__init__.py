"""The command lines. Each turns arguments into one call and errors into words and an exit code."""


# The command lines. Each turns arguments into one call and errors into words and an exit code.
