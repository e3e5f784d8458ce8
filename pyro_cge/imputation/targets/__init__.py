"""From a disease signature to ranked drugs and targets."""
