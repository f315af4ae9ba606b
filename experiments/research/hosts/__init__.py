"""What should a miss become? Copies, the host and bounded admission at equal slots, on machines with other hosts."""
