"""What a compression did: its report, the groups it made, and pictures of them."""
