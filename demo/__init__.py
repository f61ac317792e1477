"""The main job from end to end, on text that ships with Python."""
