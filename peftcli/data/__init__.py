"""Sources, formats, chat rendering, the loss mask and its proof, mixing, the doctor, and the token cache."""
