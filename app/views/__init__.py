"""The pages, one folder or file each; `app.navigation` finds those that have a TITLE."""
