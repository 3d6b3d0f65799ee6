"""The methods of the control protocol; they know the parts by their interfaces alone."""
