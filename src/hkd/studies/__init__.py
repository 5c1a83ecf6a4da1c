"""Many runs: a plan of specifications, the engines that carry it out, and what is made of it."""
