"""Exit codes of `uniflow` besides 0 and 2 (bad input, which the user can fix)."""

INTERRUPTED = 130  # by Ctrl-C
# EX_TEMPFAIL of sysexits.h: "a temporary failure, the user is invited to try again".
REQUEUE = 75
