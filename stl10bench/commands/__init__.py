"""The commands, a module for each group: options -> rows and files on stdout; light."""
