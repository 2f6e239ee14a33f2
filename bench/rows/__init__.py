"""What is measured, a module for each kind. `contests` of each gives its share."""
