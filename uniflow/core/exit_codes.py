"""Exit codes of `uniflow` besides 0."""

FAILED = 1  # an error of the program or the machine; the trace is in RUN/error.log
BAD_INPUT = 2  # which the user can put right
# EX_IOERR of sysexits.h: the disk is full.
NO_SPACE = 74
# EX_TEMPFAIL of sysexits.h: "a temporary failure, the user is invited to try again".
REQUEUE = 75
INTERRUPTED = 130  # by Ctrl-C
