"""Memory: what is carried from task to task, never an old picture."""
