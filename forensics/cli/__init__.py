"""The program `forensics`: options, output and exit codes; no logic here."""
