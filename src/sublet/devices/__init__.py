"""Device models. They see the contracts of ``sublet.hw`` only, never an engine or a machine."""
