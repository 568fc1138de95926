"""What every request goes through, whatever it is for."""
