"""What users would pick instead of Lensgate."""
