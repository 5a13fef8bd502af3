"""How well a prompt or a query will do, told from its text or its vector before anything is generated or searched."""
