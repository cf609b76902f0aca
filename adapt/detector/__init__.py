"""What a user deploys, and what it says of unknown files."""
