"""Settings: their declaration (field), tables of settings (config), files of settings (recipes)."""
