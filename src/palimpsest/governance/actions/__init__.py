"""Actions: the ways in which a governed memory is changed, each with its way back."""
