"""What operators tune: immutable versions of a pool's policy, published and rolled back."""
