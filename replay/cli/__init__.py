"""The program `replay`: options, output and exit codes; each command calls the part of the engine that does it."""
