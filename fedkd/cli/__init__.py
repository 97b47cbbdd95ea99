"""The command `fedkd`: one function a verb, in `verbs`; `main` parses the command line."""
