/*
 * Counts the objects of an image by class, and selects those of one class.
 *
 * In QuPath: Automate > Project scripts > class summary, then Run, or Run > Run for project.
 * Command line: QuPath script class_summary.groovy --project=project.qpproj
 * Arguments: stqp: only objects that stqp wrote; a class, e.g. Neoplastic or "Tumor: Positive": select it.
 * QuPath 0.4 to 0.7. Changes nothing.
 */

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def onlyStqp = options.remove("stqp")
def selectClass = options ? options[0] : null

def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("class_summary works on an image: open one, or choose Run > Run for project")
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def className = { it.getPathClass() == null || it.getPathClass() == PathClass.getNullClass() ? "" : it.getPathClass().toString() }

def objects = hierarchy.getAllObjects(false).findAll { !onlyStqp || metadata(it).get("stqp.source") != null }
def counts = new TreeMap<String, Integer>()
objects.each {
    def kind = it.isAnnotation() ? "annotation" : it.isCell() ? "cell" : it.isDetection() ? "detection" : "other"
    counts.merge(kind + "  " + (className(it) ?: "(no class)"), 1, Integer::sum)
}
println "${getProjectEntry()?.getImageName() ?: 'this image'}: ${objects.size()} objects"
counts.each { text, n -> println String.format("%9d  %s", n, text) }

if (selectClass != null) {
    def chosen = objects.findAll { className(it) == selectClass }
    selectObjects(chosen)
    println "selected ${chosen.size()} of class ${selectClass}"
}
