"""The laboratory's commands. They import the rest of it when they are called."""
