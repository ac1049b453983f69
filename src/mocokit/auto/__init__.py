"""What ``auto`` chooses, from plain facts: ``defaults.py`` by rules, ``trials.py`` by what it is handed to measure."""
