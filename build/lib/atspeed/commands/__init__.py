"""What `atspeed NAME` runs: a module a command, the four stages among them. `main`'s parameters are its flags."""
