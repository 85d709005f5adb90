"""Reading files from outside without executing anything in them."""
