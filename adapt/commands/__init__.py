"""One file for each `adapt COMMAND` that is no experiment."""
