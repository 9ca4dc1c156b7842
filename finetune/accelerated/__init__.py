"""What makes a processor fast and changes no result beyond rounding."""
