"""Files of token ids that other trainers read, a module for each kind: `token_file.open_all`."""
