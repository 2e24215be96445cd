"""In which order should a language model be trained on its skills, and what did each step cost the others?"""
