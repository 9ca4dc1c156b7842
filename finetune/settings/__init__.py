"""Every setting, declared once: its type, bounds and help, who has a use for it, and whether it changes results."""
