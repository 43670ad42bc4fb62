"""Settings: what one is (field), the tables of them (config), files of them (recipes)."""
