DATETIME_FORMAT = "j M Y, H:i:s e"
