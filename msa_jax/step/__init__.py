"""What one training step is: recipe, objective, optimizer."""
