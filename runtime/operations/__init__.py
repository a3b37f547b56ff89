"""The verbs: create, load, start, exec, kill, pause, resume, update, delete.

Each takes typed requests, decides and refuses first, then acts with every acquisition undone on failure.
What must wait is a generator (`runtime.waiting`); the rest are plain functions that never block.
"""
