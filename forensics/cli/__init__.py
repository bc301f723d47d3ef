"""The program `forensics`: options, output and exit codes; each command calls the part of the library that does it."""
