"""The program `replay`: options, output and exit codes; no logic here."""
