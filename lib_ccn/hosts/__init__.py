"""One module per host family; nothing else imports a host."""
