"""What every room needs and no room owns: files that a user wrote, foreign text, optional packages."""
