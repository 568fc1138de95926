"""The blueprints of the contract, of health checks and of the host page."""
