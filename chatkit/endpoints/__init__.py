"""The blueprints that both backends share."""
