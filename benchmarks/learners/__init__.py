"""What `time_to_quality.py` compares: each learns to reconstruct a folder of photographs, in a process of its own."""
