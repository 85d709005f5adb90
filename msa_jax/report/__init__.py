"""Tables and plots drawn from run directories."""
