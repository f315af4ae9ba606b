"""When things ran: on the host's clock, and on the device's."""
