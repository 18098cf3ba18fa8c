/*
 * Turns detections or cells into annotations, which train stqp and whose outlines can be edited.
 * The selected ones, or those of given classes. Class, name, id, measurements, metadata, lock and children stay; so do
 * stqp's marks, and the change of kind does not count as a correction. annotations_to_detections turns them back.
 *
 * In QuPath: select detections, Automate > Project scripts > detections to annotations, then Run.
 * Command line: QuPath script detections_to_annotations.groovy --project=project.qpproj --args Neoplastic --save
 * Arguments: class names in place of the selection; all: every detection and cell; cell: a cell becomes its outer
 *            outline, not its nucleus.
 * QuPath 0.4 to 0.7. Changes objects of the image; save it afterwards.
 */

import groovy.transform.CompileStatic
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32
import org.locationtech.jts.geom.LineString
import org.locationtech.jts.geom.util.LinearComponentExtracter
import qupath.lib.roi.GeometryROI
import qupath.lib.roi.PolygonROI
import qupath.lib.roi.RectangleROI
import qupath.lib.roi.interfaces.ROI

// true: a cell becomes the outline of its nucleus, where it has one
def nucleus = true

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
if (options.remove("cell"))
    nucleus = false
def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("detections_to_annotations works on an image: open one")
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def note = { object, key, value -> since06 ? object.getMetadata().put(key, value) : object.storeMetadataValue(key, value) }

def candidates = options ? hierarchy.getDetectionObjects() : getSelectedObjects()
def chosen = candidates.findAll {
    it.isDetection() && it.getROI() != null && (!options || "all" in options || it.getPathClass()?.toString() in options)
}
if (!chosen) {
    println "no detection is " + (options ? "of class ${options.join(' or ')}" : "selected; select some, or give class names as arguments")
    return
}

// ---- one new object for each, in the same place of the hierarchy

def made = new LinkedHashMap()
chosen.each { old ->
    def fresh = PathObjects.createAnnotationObject(PathObjectTools.getROI(old, nucleus))
    // the change of kind is no correction: what is noted of an untouched outline is noted of the new one
    def written = metadata(old).get("stqp.written")
    def noted = new LinkedHashMap(metadata(old))
    if (written != null && written.endsWith("|" + checksum(old.getROI())))
        noted["stqp.written"] = written.substring(0, written.lastIndexOf("|") + 1) + checksum(fresh.getROI())
    // so that it becomes the same cell again
    if (old.isCell() && nucleus && old.getNucleusROI() != null)
        noted["stqp.cell"] = old.getROI().getGeometry().toText()
    noted.each { key, value -> note(fresh, key, value) }
    fresh.setPathClass(old.getPathClass(), old.getClassProbability())
    fresh.getMeasurementList().putAll(old.getMeasurementList())
    fresh.getMeasurementList().close()
    fresh.setName(old.getName())
    fresh.setColor(old.getColor())
    fresh.setLocked(old.isLocked())
    fresh.setID(old.getID())
    made[old] = fresh
}
def children = made.keySet().collectEntries { [it, it.getChildObjects() as List] }
def places = made.keySet().groupBy { it.getParent() }
children.each { old, kids -> made[old].addChildObjects(kids.collect { made[it] ?: it }) }
places.each { parent, olds ->
    if (made.containsKey(parent))
        return
    parent.removeChildObjects(olds)
    parent.addChildObjects(olds.collect { made[it] })
}
hierarchy.fireHierarchyChangedEvent(this)
hierarchy.getSelectionModel().setSelectedObjects(made.values() as List, null)
println "${getProjectEntry()?.getImageName() ?: 'this image'}: ${made.size()} made annotations"

/** Checksum of an outline as stqp notes it: of its vertices as floats, sorted by x, then y. */
@CompileStatic
static String checksum(ROI roi) {
    List<double[]> vertices = []
    boolean rounded = false
    if (roi instanceof GeometryROI) {
        List<LineString> rings = LinearComponentExtracter.getLines(roi.getGeometry()) as List<LineString>
        for (LineString ring : rings) {
            def places = ring.getCoordinates()
            for (int i = 0; i < places.length - 1; i++)
                vertices.add([places[i].getX(), places[i].getY()] as double[])
        }
        rounded = rings.size() != 1 // 0.6 and later round these when they save
    } else if (roi instanceof PolygonROI || roi instanceof RectangleROI) {
        for (point in roi.getAllPoints())
            vertices.add([point.getX(), point.getY()] as double[])
        if (vertices.size() > 1 && Arrays.equals(vertices.first(), vertices.last()))
            vertices.remove(vertices.size() - 1)
    } else {
        return "another shape"
    }
    List<float[]> sorted = []
    for (double[] v : vertices) {
        double x = rounded ? Math.floor(v[0] / 0.01d + 0.5d) * 0.01d : v[0]
        double y = rounded ? Math.floor(v[1] / 0.01d + 0.5d) * 0.01d : v[1]
        sorted.add([x + 0d, y + 0d] as float[]) // -0 becomes 0
    }
    sorted.sort { float[] a, float[] b -> Float.compare(a[0], b[0]) ?: Float.compare(a[1], b[1]) }
    def buffer = ByteBuffer.allocate(8 * sorted.size()).order(ByteOrder.LITTLE_ENDIAN)
    for (float[] v : sorted)
        buffer.putFloat(v[0]).putFloat(v[1])
    def crc = new CRC32()
    crc.update(buffer.array())
    return String.format("%08x", crc.getValue())
}
